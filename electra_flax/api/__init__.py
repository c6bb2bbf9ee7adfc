"""What a program calls: `import electra_flax` has it all (docs/api.md). Commands are made of it."""
