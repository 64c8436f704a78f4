"""How it is trained: task, plan, train step, trainer, run, resume, reporter."""
