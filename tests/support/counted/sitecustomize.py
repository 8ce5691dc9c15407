"""Python runs this first in a server that a test counts: each statement and each thousand steps of SQLite goes to a file.

Steps of SQLite's virtual machine are the same on every machine, however busy: a page that looks at every device takes a
million of them.
"""

import os
import sqlite3

STEPS = 1000
FILE = os.open(os.environ["COUNTED_SQL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
connect = sqlite3.connect


def counted(*arguments, **options):
    connection = connect(*arguments, **options)
    connection.set_trace_callback(
        lambda statement: os.write(FILE, f"{' '.join(statement.split())}\n".encode()) and None
    )
    connection.set_progress_handler(lambda: os.write(FILE, b"+\n") and 0, STEPS)
    return connection


sqlite3.connect = counted
