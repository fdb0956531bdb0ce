"""Files that are part of the package: the embedded checkpoint `seed-tiny`."""
