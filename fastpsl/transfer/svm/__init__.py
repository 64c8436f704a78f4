"""Linear SVMs on frozen features."""
