"""Makes the library of ready vectors, and measures its verdicts anew; `steer.vectors` reads it."""
