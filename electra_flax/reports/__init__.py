"""What people look at: the page about runs, doctor, what a model says of sentences."""
