"""What is asked: servers that we start, pin to CPUs and freeze (`servers`), and models of known shapes with random
weights (`shapes`, `random_model`)."""
