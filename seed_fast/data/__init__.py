"""From files to pixels and from codes to files: listing inputs, decoding in processes, resizing, writing codes."""
