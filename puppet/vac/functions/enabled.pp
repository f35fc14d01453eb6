# @summary True if a switch is on
#
# @param switch
#   The switch, in any spelling
# @return [Boolean]
function vac::enabled(Vac::Switch $switch) >> Boolean {
  $switch in [true, 'yes', 'true', 'on', '1']
}
