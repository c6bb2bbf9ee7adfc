"""What a command does to its own process, and how it speaks and ends."""
