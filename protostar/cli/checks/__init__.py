"""What `protostar doctor` checks, a module for each part."""
