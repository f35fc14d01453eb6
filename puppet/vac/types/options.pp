# Options of one section; undef leaves one out, which a lower level of Hiera has set
type Vac::Options = Hash[Pattern[/\A[a-z0-9_]+\z/], Variant[Undef, Vac::Value, Sensitive[Vac::Value]]]
