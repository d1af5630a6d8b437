"""Records in HDF5 files, which are readable while they grow and after a kill."""
