"""The job functions, one file each, and the packages they are built from."""
