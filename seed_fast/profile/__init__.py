"""`seed-fast profile`: where the time of encoding goes, how far each stage is from its ceiling, what would help.

1. `cost` counts what each stage has to do: operations and bytes.
2. `ceilings` measures what the machine can do: matrix products and copies.
3. `measure` runs the stages and times them.
4. `analysis` combines the three, `text` and `figure` show the result, and `run` does all of it.
"""
