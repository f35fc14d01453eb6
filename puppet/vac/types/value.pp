# Value of an option: a list is written with blanks between its entries, a boolean as yes or no
type Vac::Value = Variant[String, Numeric, Boolean, Array[Variant[String, Numeric]]]
