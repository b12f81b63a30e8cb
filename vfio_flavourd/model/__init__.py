"""What things are: values and decisions, without any I/O."""
