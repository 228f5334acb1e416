"""The bytes of lanes that are not in the cache: in host memory, and in files on disk.

Which prefixes they are, and which give way, is decided in `scheduling` (`hostcache`,
`diskindex`). Here is what holds them: an arena of pages, a thread that does nothing but
file work, the seals of the files, and what an earlier process left there.
"""
