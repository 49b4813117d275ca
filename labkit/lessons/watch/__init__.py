"""Watching: numbers while it runs.

sampling     a process of its own reads cgroup files many times a second
reader       that process
workloads    programs that use up what a chapter limits
measuring    taking turns, so that a noisy machine says the truth
reclaiming   who gives memory back first
copyup       what the first write to a layer's file costs
lsns         which namespaces there are, and how one is kept
listing      files as a chapter shows them
tracing      the syscalls that made a container
taught       which chapter taught which of them
"""
