module victim

go 1.26
