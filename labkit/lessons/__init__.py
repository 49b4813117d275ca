"""The lessons: what chapters call beyond the container itself.

coursework   a participant's copies of the chapters, and what was passed
gaps         exercises: the gap, the solution
pages        the cheat sheet and the glossary
scratch      a folder for as long as a block runs
checks/      did it work? The kernel is asked, never the text
figures/     pictures of what was measured
panels/      sliders and trees
watch/       numbers while it runs
beside/      Docker, LXC, a virtual machine: really started
scenes/      the museum of escapes, and half-built containers
"""
