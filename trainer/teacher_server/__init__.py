"""The teacher server: teachers run once over the corpus, students read what they said.

``teachers`` opens what is named as a teacher, ``identity`` says what a stored column was made from,
``request`` lists the cells to fill and cuts them into parts, ``fill`` computes them with one
teacher in memory at a time, ``signals`` serves a student's batches from columns, and ``live``
serves the same from models. ``logits`` and ``fill_logits`` do both for stage I logits of drawn
negatives, which follow from stored vectors. ``planning``, ``status``, ``verify`` and ``prune`` are
the other commands.
"""
