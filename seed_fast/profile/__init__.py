"""`seed-fast profile`: where the time of encoding goes, how far each stage is from its ceiling, what would help.

`cost` knows what each stage has to do, `ceilings` what the machine can do, `measure` runs the stages, `analysis` puts
the three together, `text` and `figure` show it, and `run` is the whole of it.
"""
