"""Teacher server: teachers run once over the corpus, and students read their stored outputs.

``kinds`` has a class for every kind of signal: its identity, how a cell is computed, how rows are
read, the command that repairs it. The other modules do not know kinds by name: ``teachers`` opens
the named teachers, ``request`` lists the signals to fill and ``cells`` cuts them into parts,
``fill`` computes them with one teacher in memory at a time. ``planning``, ``status`` and ``verify``
are the other commands. ``signals`` is the interface to students.
"""
