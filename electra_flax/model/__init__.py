"""Generator, discriminator and heads; attention and its kernel; randomness; sharding."""
