"""What is learned and how: objectives, masking, losses, optimizers, steps, checkpoints, the loop."""
