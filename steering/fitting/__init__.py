"""From contrast pairs to a guard bundle: states, SAS, training, report. A server needs none of it at run time."""
