"""Images in: sources, checksums, the packed cache, splits and augmentation."""
