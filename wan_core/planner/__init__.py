"""What a run will need, before anything is loaded: memory, transfers, time, and all of it in words.

Pure arithmetic over headers and shapes; what the machine has comes in as a `Machine`.
"""
