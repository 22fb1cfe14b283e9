"""The checks of `protostar doctor`, one module for each part."""
