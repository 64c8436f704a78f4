"""`fastpsl doctor`: how fast each part of a recipe is on this machine, which one holds up the others, and what to change."""
