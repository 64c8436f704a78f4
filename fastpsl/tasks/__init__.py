"""What is learned: pretext tasks, a file each."""
