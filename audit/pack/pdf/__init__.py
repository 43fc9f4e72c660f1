"""The PDF of an evidence pack: what its manifest says, laid out for a person who reads and signs. Pure; ReportLab is imported here alone.

`render()` in render.py; look.py has fonts, colours and the page; parts.py tables and charts; sections.py the text.
"""
