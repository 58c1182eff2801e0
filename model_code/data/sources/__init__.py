"""One file per layout that images come in; each yields (split, label, name, bytes) images."""
