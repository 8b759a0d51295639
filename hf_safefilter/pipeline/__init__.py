"""One recipe from rows to the rows that are safe to tune on."""
