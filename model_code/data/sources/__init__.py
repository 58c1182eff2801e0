"""One file per layout that pictures come in; each yields (split, label, name, bytes) pictures."""
