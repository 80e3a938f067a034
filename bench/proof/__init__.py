"""What proves the load client right.

In comes a script of how a server behaves; out comes what it sent, and when. Read `mock`.
"""
