"""Records to tidy rows, tables, figures and one offline HTML page. No torch."""
