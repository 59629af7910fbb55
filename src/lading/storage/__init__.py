"""Objects by key, and the files uploads grow in; knows neither repositories nor the database."""
