"""Fine-tuning: tasks as data, heads, metrics, the loop, and what is made of a result."""
