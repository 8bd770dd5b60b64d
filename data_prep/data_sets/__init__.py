"""Data sets of the field, and folders of photos, as records: a file each."""
