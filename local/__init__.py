"""What happens at home: config, run records, checks, pull, quantise, evaluate, serve."""
