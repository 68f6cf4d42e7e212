"""The sections of the report, one file each; `report/section.py` states their contract."""
