"""The four training objectives: post-training and finetuning, and the distillation of each.

A task has two halves. Its **data** half (``PostTrainData``, ``ClickData``) turns rows into arrays
and does not use torch; its **module** half turns a batch into losses.
:func:`trainer.tasks.build.build` makes both.
"""
