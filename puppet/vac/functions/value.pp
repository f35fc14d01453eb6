# @summary A value as it stands after `option =` in Vac's configuration
#
# Text of several lines goes on in indented ones, and so does what would be read as a comment on the option's own line.
#
# @param value
#   The option's value
# @return [String]
#   The text, without a line end after it
function vac::value(Vac::Value $value) >> String {
  $text = $value ? {
    Boolean => String($value, '%y'),
    default => [$value].flatten.join(' '),
  }
  $lines = split($text, /\r?\n/).filter |$line| { $line =~ /\S/ }
  if $lines.length > 1 or $text =~ /[ \t];/ {
    (['""'] + $lines).join("\n\t")
  } else {
    $lines.join
  }
}
