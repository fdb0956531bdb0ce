"""From files to pixels and from codes to files: opening, resizing, listing inputs, decoding in processes, writing."""
