"""The teacher server: teachers run once over the corpus, students read what they said.

``identity`` says what a stored column was made from, ``fill`` computes columns with one teacher in
memory at a time, ``signals`` serves a student's batches from columns, and ``live`` serves the same
from models.
"""
