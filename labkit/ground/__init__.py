"""The ground: what is there, what we made, how the kernel is asked.

Read in this order:

    typed       `typing`'s names, for commands that live a tenth of a second
    dataclass   the standard library's, likewise
    errors      what a participant reads when something fails
    state       where things are kept, so that a crash leaves them readable
    syscalls    the kernel's doors, by their man pages' names
    proc        what the kernel says of a process
    ledger      what we made and must give back, written down first
    trees       folders of strangers, however deep
    child       kernel work in a process of its own
    arguments   a command's words
    named_file  a file that somebody named to write to
    signals     by the names that people give them
    synced      what is there after a power cut
    later       a module that is loaded when it is needed
    packages    which package brings what is not here
"""
