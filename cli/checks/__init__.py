"""What `protostar doctor` looks at: one module for each part of the house."""
