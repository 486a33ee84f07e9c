"""The teacher server: teachers run once over the corpus, students read what they said.

``kinds`` has a class for every kind of signal: what it is made from, how a cell is computed, how
rows are read, what repairs it. The rest knows none by name: ``teachers`` opens what is named as a
teacher, ``request`` lists the signals to fill and ``cells`` cuts them into parts, ``fill`` computes
them with one teacher in memory at a time. ``planning``, ``status`` and ``verify`` are the other
commands. ``signals`` is what students ask and are told.
"""
