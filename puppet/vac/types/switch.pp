# A switch, also in the spellings of the class of Vac 3
type Vac::Switch = Variant[Boolean, Enum['', 'yes', 'no', 'true', 'false', 'on', 'off', '1', '0']]
