# A file of a machinetype, as Puppet's own resource takes it
type Vac::File = Struct[{
  Optional['content'] => Variant[String, Sensitive[String]],
  Optional['source']  => Variant[String[1], Array[String[1], 1]],
  Optional['mode']    => String[1],
}]
