"""What a person sees of long work: progress, screens and words. It imports neither torch nor another room."""
