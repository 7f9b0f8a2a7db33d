"""What the next step is: its size, the error it may make, the times it must land on."""
